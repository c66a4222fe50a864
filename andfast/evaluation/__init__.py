"""Judging restorers on pairs of real LR and HR pictures: layouts, pairs, methods, scores, reports."""
