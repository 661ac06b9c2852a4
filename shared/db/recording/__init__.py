"""What a recorder keeps rows in until they are stored, and how it stores a batch."""
