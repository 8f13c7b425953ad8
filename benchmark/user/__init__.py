DEFAULT_SUITE = "digits"
