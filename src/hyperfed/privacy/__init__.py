"""What a curious server can learn from the messages of a client, and how well it does."""
