"""What normalization and dropout layers do while a network trains; plain torch."""
