"""What goes to the Hub."""
