"""From predictions to scores, and what makes a score trustworthy: intervals, held-out images, leakage."""
