# Picks Go's own summary lines out of the output of "go test -v", and what was
# skipped and why.
/^(ok  \t|FAIL\t)/ || /^ *--- FAIL/ { print }
/^ *--- SKIP/ {
	reason = previous ~ /^ +[a-z0-9_]+\.go:/ ? previous : ""
	print $0 reason
}
{ previous = $0 }
