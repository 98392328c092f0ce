"""What is made of another attack: other goals, averaged gradients, transfer, 8 bits."""
