"""Self-checks of an attack on a defense: would it have found an adversarial example that is surely there?"""
