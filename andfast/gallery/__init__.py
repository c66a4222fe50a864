"""The attack on one photograph as a picture and as numbers; implements ``andfast degrade``."""
