"""Files to rows: containers, JSON, CSV and Parquet, with row numbers and reasons for rejection."""
