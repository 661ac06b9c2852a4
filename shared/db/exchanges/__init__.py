"""What exchanges send and publish, as rows: a folder an exchange."""
