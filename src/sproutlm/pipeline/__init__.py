"""The assembly: recipes become data, tokenizer, model and trainer here, and nowhere else."""
