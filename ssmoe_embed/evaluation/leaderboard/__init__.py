"""What a leaderboard submission takes, and whether results can be submitted."""
