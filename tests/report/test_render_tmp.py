import shutil
from trivium.report.page import write_report
def test_x(make_run):
    for i,(kw) in enumerate([dict(), dict(steps=300,with_summary=False,name="b"), dict(steps=0,with_summary=False,name="c"),dict(steps=400,changes=dict(status="failed",error="loss became NaN", samples=[],held_out={}),name="d")]):
        p=write_report(make_run(**kw)); shutil.copy(p,f"/tmp/r{i}.html"); print(p.stat().st_size)
