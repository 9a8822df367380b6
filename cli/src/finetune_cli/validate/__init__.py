"""`finetune validate`: the operator's rules, the API server's answer, and the labels of the first rows."""
