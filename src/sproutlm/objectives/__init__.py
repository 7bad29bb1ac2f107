"""What a stage optimises: ``objective(model, batch) -> (loss_sum, count, metrics)``, sums and counts, never means."""
