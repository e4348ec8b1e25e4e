rule reverse_shell_bash
{
    meta:
        description = "A shell whose input and output are a connection that bash opens"
    strings:
        $dial = /(ba|z|k)?sh\s+-i\s*(>&|&>|>|<)[^\n]{0,40}\/dev\/(tcp|udp)\/[^\s\/]{1,253}\/[0-9]{1,5}/
        $exec = /exec\s+[0-9]{1,3}<>\s*\/dev\/tcp\/[^\s\/]{1,253}\/[0-9]{1,5}[^\x00]{0,200}(cat\s*<&|sh\s+-i|<&[0-9])/
    condition:
        any of them
}

rule reverse_shell_netcat
{
    meta:
        description = "netcat, ncat or socat that hands a shell to whoever is at the other end"
    strings:
        $exec = /\b(nc|ncat|netcat)(\.traditional)?\s[^\n]{0,120}\s?(-e|-c|--exec|--sh-exec)\s*['"]?(\/usr)?(\/bin\/)?(ba|da|z)?sh\b/
        $pipe = /mkfifo\s+\S{1,100}[^\x00]{0,120}\b(ba|da)?sh\s+-i\s*2>&1\s*\|\s*(nc|ncat|netcat|telnet|openssl s_client)\b/
        $socat = /socat\s[^\n]{0,160}exec:['"]?(\/bin\/)?(ba|da)?sh[^\n]{0,80}pty/ nocase
    condition:
        any of them
}

rule reverse_shell_script
{
    meta:
        description = "A script that puts a shell's input and output on a socket"
    strings:
        $python = /\.connect\(\([^\n]{3,120}\)\)[^\x00]{0,200}os\.dup2\([^\x00]{0,300}(pty\.spawn|subprocess\.(call|run|Popen)|os\.system|os\.exec\w{1,2})\([^\n]{0,40}sh\b/
        $perl = /socket\(\s*\w{1,20}\s*,[^\x00]{0,200}connect\([^\x00]{0,200}open\(\s*STDIN[^\x00]{0,120}exec[^\n]{0,20}sh\s+-i/
        $php = /fsockopen\([^\n]{3,160}\)[^\x00]{0,200}(exec|shell_exec|proc_open|system|passthru)\([^\n]{0,40}sh\b[^\n]{0,20}-i/
        $ruby = /TCPSocket\.(new|open)\([^\n]{3,120}\)[^\x00]{0,120}exec[^\n]{0,60}sh\s+-i\s*<&/
        $node = /net\.(Socket|connect|createConnection)\([^\x00]{0,400}(spawn|exec)\(\s*['"](\/bin\/)?(ba|da)?sh['"][^\x00]{0,400}\.pipe\(\s*\w{1,20}\.stdin/
    condition:
        any of them
}
