"""Asking web servers for photographs: politely, and without being led where nobody may go."""
