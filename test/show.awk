# Shortens the output of "go test -v": how each test ended, why it was skipped,
# and everything of a package that failed.
/^=== RUN / { test = "" }
{
	package = package $0 "\n"
	test = test $0 "\n"
}
/^ok  \t/ { print; package = ""; fflush(); next }
/^\?   \t/ { package = ""; next }
/^FAIL\t/ { printf "%s", package; package = ""; fflush(); next }
/^--- SKIP/ { printf "%s", test; fflush(); next }
/^--- (PASS|FAIL)/ { print; fflush() }
END { printf "%s", package }
