"""How assets reach the stores: the lakehouse resource and the IO managers."""
