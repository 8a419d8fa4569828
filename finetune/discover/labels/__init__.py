"""From values and lists to the `labels:` block of a recipe."""
