import re


class Metric:
    def __init__(self, key, value, timestamp, step):
        assert re.fullmatch(r"[\w\-./ ]+", key) and isinstance(value, float) and isinstance(timestamp, int)
        self.key, self.value, self.timestamp, self.step = key, value, timestamp, step


class Param:
    def __init__(self, key, value):
        assert isinstance(value, str)
        self.key, self.value = key, value
