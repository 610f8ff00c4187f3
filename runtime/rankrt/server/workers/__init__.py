"""Who runs rows: processes that have the models, or this process."""
