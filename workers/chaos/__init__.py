"""`homing chaos`: real processes on real servers, faults on purpose, and a judge that reads only rows and the receiver's log.

command.py           the command: what is printed, exit codes
stage.py             where it plays: servers, a template database, a folder; all removed afterwards
run.py               one scenario from beginning to end: start, play, settle, judge
trial.py             what a scenario may do: load, faults, marks, checks
scenario.py          what a scenario is, and what it needs
matrix.py            all scenarios, in order
scenarios/           the scenarios, by what is broken
fleet.py             Homing's processes: started, killed, stopped, measured
load.py producer.py  the business, as a process of its own
receiver_process.py receiver.py behaviours.py   the receivers, as a process of their own
proxy.py toxics.py   a TCP proxy with Toxiproxy's toxics
witness.sql          what is added to the database: orders, the mark for failpoints, a log of every move
ledger.py            what happened, as read from Postgres and the receiver's log
oracle.py            the judge: a ledger in, violations out; imports nothing of the code that it judges
residue.py           what must not be left behind: leases, locks, transactions, memory, descriptors
report.py            the table, as text, JSON and Markdown
"""
