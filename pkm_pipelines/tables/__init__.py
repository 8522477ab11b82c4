"""The table manager: writes with their watermarks, and what changed since one."""
