"""What is read: rows of text or pairs, split, packed into blocks, and evaluation items."""
