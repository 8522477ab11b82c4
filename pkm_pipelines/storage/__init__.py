"""The stores: one file each, and none knows another."""

import os

# Lance writes warnings that are about its own business (how k-means went, say) to stderr, and reads this when it is
# first imported. What concerns a user is raised as an error.
os.environ.setdefault("LANCE_LOG", "error")
