"""What runs inside: the warden, the program and the tests. Standard library only."""
