from voxout.pipeline.stages.report import stage_times
from voxout.pipeline.workflow.records import StageRecord


def test_times_of_an_applied_model_are_marked_and_the_old_report_is_left_out():
    def record(stage, seconds):
        return StageRecord(stage, {}, {}, wall_s=seconds)

    of_model = {name: record(name, 50.0) for name in ("check", "fit", "report")}
    own = {"check": record("check", 1.0), "fit": None, "report": record("report", 9.0)}
    assert [(s.stage, s.wall_s, s.of_model) for s in stage_times(own, of_model)] == [
        ("check", 1.0, False),
        ("fit", 50.0, True),
    ]
    assert not any(s.of_model for s in stage_times(of_model, of_model))
