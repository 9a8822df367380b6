"""Read rows from dataset files (JSON, CSV, Parquet), with a number and a verdict for each row."""
