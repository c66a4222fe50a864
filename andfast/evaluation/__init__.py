"""Evaluation of restorers on LR/HR pairs: layouts, pairs, methods, scores and reports."""
