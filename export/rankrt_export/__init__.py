"""The half of rankrt that turns a Hugging Face checkpoint into an artifact."""
