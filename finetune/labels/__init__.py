"""What mask values mean: rules, presets, translation."""
