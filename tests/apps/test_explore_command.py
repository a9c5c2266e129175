"""`interp explore` refuses early, and serves the explorer to this machine alone."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from interp.cli import explore
from interp.cli.main import main


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["explore", *arguments])
    return stop.value.code, capsys.readouterr().err


def test_without_streamlit_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setattr(explore, "find_spec", lambda _name: None)
    code, sentence = refused(capsys)
    assert code == 2
    assert "interp-workbench[explorer]" in sentence


def test_a_folder_that_is_not_there_is_refused(capsys, tmp_path):
    code, sentence = refused(capsys, "--runs", str(tmp_path / "nowhere"))
    assert code == 2
    assert "there is no folder" in sentence


def test_a_file_for_a_folder_is_refused(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, sentence = refused(capsys, "--runs", str(tmp_path / "file"))
    assert code == 2
    assert "is a file" in sentence


def test_a_port_that_is_none_is_refused(capsys):
    assert refused(capsys, "--port", "99999")[0] == 2


def test_a_port_in_use_is_refused_before_anything_is_said_to_be_there(capsys):
    pytest.importorskip("streamlit")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        code, sentence = refused(capsys, "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "name another with --port" in sentence
    assert "The explorer is at" not in sentence


def test_streamlit_reads_that_nothing_leaves_the_machine(root):
    config = pytest.importorskip("streamlit.config")
    config._main_script_path = str(root / "apps/explorer/app.py")
    try:
        options = config.get_config_options(force_reparse=True)
        assert options["browser.gatherUsageStats"].value is False
        assert options["server.address"].value == "localhost"
        assert options["server.showEmailPrompt"].value is False
    finally:
        config._main_script_path = None
        config.get_config_options(force_reparse=True)


def test_the_command_serves_the_explorer(tmp_path):
    pytest.importorskip("streamlit")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "interp.cli.main", "explore", "--runs", str(tmp_path), "--model", "none"]
    with subprocess.Popen([*command, "--port", str(port)], stderr=subprocess.PIPE, start_new_session=True) as server:
        try:
            assert answer(f"http://localhost:{port}/_stcore/health", server) == b"ok"
            assert b"<title>" in answer(f"http://localhost:{port}/runs", server)
        finally:
            import os
            import signal

            os.killpg(server.pid, signal.SIGINT)


def answer(address, server):
    for _ in range(300):
        assert server.poll() is None, server.stderr.read()
        try:
            with urllib.request.urlopen(address, timeout=5) as page:
                return page.read()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError(f"nobody answers at {address}")
