"""What masks hold, what lists of classes say."""
