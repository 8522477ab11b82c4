"""How assets reach the stores: IO managers and the lakehouse resource."""
