module idlerace

go 1.26.0

