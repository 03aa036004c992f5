"""`homing demo`: real transactions, real processes, a killed worker, and a comparison that can fail.

    command.py           the command: what is printed, exit codes, Ctrl-C
    scenario.py          the story, step by step
    stage.py             where it plays: a home, a database and a Redis of its own, all removed afterwards
    own_servers.py       a database and a Redis of its own on servers that exist already
    destinations.py      the endpoints, and how each behaves
    receiver.py          the process that receives; imports nothing of Homing
    receiver_process.py  starts, repairs and stops it
    producer.py          the business transactions
    watch.py             what the database says meanwhile
    ledger.py            what was committed against what was received
    progress.py          what is shown on stderr

The comparison trusts the orders in the database and the receiver's own log, and nothing that the pipeline says of itself.
"""
