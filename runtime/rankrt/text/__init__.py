"""From text to rows of token ids: options, instructions, tokenizers. Knows no model, and nothing that runs one."""
