"""Diagnosis of the machine and of a training configuration, behind ``andfast doctor``."""
