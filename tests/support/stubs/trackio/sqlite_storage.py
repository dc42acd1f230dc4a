from _stub_store import Store


class SQLiteStorage:
    @staticmethod
    def get_metric_values(project, run, metric_name):
        found = Store(f"trackio/{project}.{run}.jsonl").read()
        return [{"step": r["step"], "value": r["metrics"][metric_name]} for r in found if metric_name in r["metrics"]]
