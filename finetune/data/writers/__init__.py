"""What annotation tools take back: one file per form, as `data/sources/` reads them."""
