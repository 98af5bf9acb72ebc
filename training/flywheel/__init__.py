"""Votes train a reward, the reward trains a student, and the student is voted on again."""
