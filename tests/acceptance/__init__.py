"""What has to be seen with real processes: ``python -m tests.acceptance.<name>`` tells each story at its full length.

``test_stories`` tells the short ones among all other tests; ``make acceptance`` tells the long ones.
"""
