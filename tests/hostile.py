"""Hostile texts that must be inert on every page: as written -> as a page shows them."""

SCRIPT = "</script><script>alert(1)</script>"
HOSTILE = {
    SCRIPT: SCRIPT,
    "<svg onload=alert(2)><img src=x onerror=alert(3)>": "<svg onload=alert(2)><img src=x onerror=alert(3)>",
    "<a href='javascript:alert(4)'>x</a>": "<a href='javascript:alert(4)'>x</a>",
    "evil \u202egnp.exe": "evil ⟨U+202E⟩gnp.exe",
    "\x1b[31mred\x1b[0m": "⟨ESC⟩[31mred⟨ESC⟩[0m",
    "{{7*7}} {% for x in y %} ${7*7} `${alert(5)}`": "{{7*7}} {% for x in y %} ${7*7} `${alert(5)}`",
    '=HYPERLINK("http://evil.example","x")': '=HYPERLINK("http://evil.example","x")',
    "&lt;b&gt; \u2028 end": "&lt;b&gt; ⟨U+2028⟩ end",
    '<!--<script> "); alert(6); //': '<!--<script> "); alert(6); //',
    "<iframe src='https://evil.example'></iframe><meta http-equiv=refresh content='0;url=https://evil.example'>":
        "<iframe src='https://evil.example'></iframe><meta http-equiv=refresh content='0;url=https://evil.example'>",
}  # fmt: skip
LONG = "A" * 1_000_000
