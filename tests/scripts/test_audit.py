from __future__ import annotations

import pytest

from engine.storage.errors import UserError, run_cli
from scripts import audit


def test_finds_and_no_finds_are_distinguished(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.verdict(0, "", "No known vulnerabilities found") == 0
    assert capsys.readouterr().out == "audited: no known vulnerability in constraints.txt\n"
    assert audit.verdict(1, "pillow 1.0 CVE-1", "Found 1 known vulnerability in 1 package\n") == 1
    assert capsys.readouterr().out == "pillow 1.0 CVE-1\nFound 1 known vulnerability in 1 package\n"


def test_an_audit_that_could_not_run_is_no_clean_bill() -> None:
    with pytest.raises(
        UserError, match=r"^nothing was audited \(ConnectionError: api.osv.dev\); it needs the package in"
    ):
        audit.verdict(1, "", "Traceback\nConnectionError: api.osv.dev\n")


def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(audit, "TOOL", ["/nowhere/uv"])
    assert run_cli(audit.main, []) == 2
    assert capsys.readouterr().err == "error: /nowhere/uv: No such file or directory; run `make install` first\n"
