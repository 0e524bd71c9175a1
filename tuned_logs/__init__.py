"""Logs of the winners that convtune ships, `<mcpu>/<variant>.jsonl`, installed as convtune.tuned_logs; data only."""
