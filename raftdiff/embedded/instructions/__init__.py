"""Short instructions whose answers rules can rate: Wombat without a large model as its teacher.

``grammar`` has the instructions and what is right, ``rating`` the four ratings from 1 to 5; ``embedded.teacher`` serves
them.
"""
