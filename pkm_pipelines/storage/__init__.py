"""The stores: one file each, and none knows another."""
