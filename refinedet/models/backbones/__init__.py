"""Networks that RefineDet can stand on."""
