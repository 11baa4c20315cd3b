"""What is done: plain functions over records. No Prefect, no environment, no hidden clock."""
