"""What the adversary does to one photograph, as a picture and as numbers: behind ``andfast degrade``."""
